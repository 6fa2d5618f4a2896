"""Pictures and one page of what run folders say."""

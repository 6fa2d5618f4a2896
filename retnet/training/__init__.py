"""The training room: turns gradients into steps. It knows no model, no data and no launcher."""

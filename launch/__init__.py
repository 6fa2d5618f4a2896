"""On which machines: the processes of a run, their terminal, and how they are asked to stop."""

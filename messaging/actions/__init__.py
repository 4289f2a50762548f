"""What an operator can do with messages and effects: one file for each action."""

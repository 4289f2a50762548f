"""What should exist on the broker: computed from the declarations, declared, and compared with what exists."""

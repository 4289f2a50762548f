"""What looks after the messages once they are on their way: records, pruning, timelines, health."""

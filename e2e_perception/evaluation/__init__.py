"""What a run was worth: metrics, and a report that explains it."""

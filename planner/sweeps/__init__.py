"""Many questions, where they run, and the file of answers."""

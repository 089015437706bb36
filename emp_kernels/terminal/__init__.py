"""What commands share: progress bars, and errors that are one line for the user."""

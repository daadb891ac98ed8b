"""What detection measures of every block, a file for each measure and for what measures share."""

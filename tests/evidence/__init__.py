"""What is recommended of runs whose right answer is known."""

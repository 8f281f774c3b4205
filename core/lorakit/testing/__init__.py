"""What plugin authors and tests need to try things on a CPU in seconds: a little world with a judge for it."""

"""The page of a run: what it says, who can read it, and that it never stops a run."""

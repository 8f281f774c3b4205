"""The working half: everything that touches tensors. Nothing here is imported before a plan is carried out."""

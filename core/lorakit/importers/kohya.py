"""x."""
class Kohya:
    def recognizes(self, d): return False

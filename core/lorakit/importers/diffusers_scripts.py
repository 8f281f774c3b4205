"""x."""
class DiffusersScripts:
    def recognizes(self, d): return False

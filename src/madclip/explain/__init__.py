"""What a detector learned, and why it says what it says of an image: texts, parts of the score and map, near shots."""

from madclip.explain.explanation import Explanation, explain

__all__ = ["Explanation", "explain"]

"""A random stream of given numbers."""


class Scripted:
    """Gives its numbers one after the other, and records what was asked of it."""

    def __init__(self, *numbers):
        self.numbers, self.asked = list(numbers), []

    def random(self):
        self.asked.append("random")
        return self.numbers.pop(0)

    def randint(self, low, high):
        self.asked.append((low, high))
        return self.numbers.pop(0)

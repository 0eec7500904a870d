"""Where the last few items of a growing text stood before."""


class LastPlaces:
    """An index of n-grams: where each last ended. What an item costs does not grow with the text.

    There is a table for each length. An n-gram stands in its table only once its last n - 1 items
    have occurred twice: as long as they have once, that is the place of the longer one too. So most
    of the text is in the first tables alone.
    """

    def __init__(self, shortest, longest):
        """shortest, longest: how many items of an n-gram are looked for."""
        self.shortest = shortest
        # Of each length: n-gram, as characters -> the place of its last item, as ~place (a number
        # below 0) while it has occurred only once
        self.tables = [{} for _ in range(shortest, longest + 1)]
        self.read = 0  # items of the text whose n-grams are known

    def behind(self, text):
        """The place behind the last earlier occurrence of the last items of a text.

        Of as many of them as occurred; the end of the text where `shortest` of them did not. text:
        a list of numbers that has only grown since it was given before; another text needs an index
        of its own.
        """
        last = len(text) - 1
        self.take_in(text, last)
        found = len(text)
        tail = "".join(map(chr, text[-(self.shortest + len(self.tables)) :]))
        for size, table in enumerate(self.tables, self.shortest):
            place = table.get(tail[-size:])
            if place is None or size > last:
                break
            found = max(place, ~place) + 1
        return found

    def take_in(self, text, stop):
        """Let the tables know the n-grams that end before `stop`."""
        first = max(self.read, self.shortest - 1)
        if stop <= first:
            return
        # What is new, and in front of it as much as an n-gram reaches back
        behind = max(0, first - self.shortest - len(self.tables))
        new = "".join(map(chr, text[behind:stop]))
        for end in range(first, stop):
            after = end + 1 - behind
            for size, table in enumerate(self.tables, self.shortest):
                if size > end + 1:
                    break
                gram = new[after - size : after]
                place = table.get(gram)
                if place is None:
                    table[gram] = ~end
                    break
                table[gram] = end
                # Its two places are the same no more, so longer ones are told apart from now on.
                longer = size + 1 - self.shortest
                if place < 0 and size <= ~place and longer < len(self.tables):
                    self.tables[longer][chr(text[~place - size]) + gram] = place
        self.read = stop

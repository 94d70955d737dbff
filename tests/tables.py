"""Reading the markdown tables that commands print."""


def cells_of(text):
    """The cells of each row of all tables in a text, headers and rules included."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def rows_of(text):
    """{first cell: other cells} of all rows."""
    return {first: others for first, *others in cells_of(text)}

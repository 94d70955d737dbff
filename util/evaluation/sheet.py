"""Sheets of pictures with captions: where everything goes, so that nothing overlaps or is cut off."""

from typing import NamedTuple

import cv2
import numpy as np

GAP = 8
CAPTION = 24
TITLE = 32  # height of a title's first line, and
LINE = 20  # of each further one
CAPTION_SCALE = 0.5
_TITLE_SCALES = (0.45, 0.65)  # a long title is set smaller, then wrapped
_PAPER, _PADDING, _INK = 255, 225, 30
_FONT = cv2.FONT_HERSHEY_SIMPLEX


class Panel(NamedTuple):
    """A picture, uint8 (h, w, 3) RGB, in the middle of `height` × `width`, under its caption."""

    picture: np.ndarray
    caption: str
    height: int
    width: int


class Text(NamedTuple):
    """Text by the left end of its base line."""

    x: int
    y: int
    text: str
    scale: float


class Block(NamedTuple):
    """Pictures and texts with their places within height × width: (x, y, picture), Text."""

    height: int
    width: int
    pictures: list[tuple[int, int, np.ndarray]]
    texts: list[Text]


def make_panel(picture, caption, height):
    """A panel of that height, at least half as wide, and wide enough for picture and caption."""
    width = max(height // 2, picture.shape[1], _text_width(caption, CAPTION_SCALE) + 4)
    return Panel(picture, caption, height, width)


def rows_block(rows, title=""):
    """A block of rows of panels, with a margin of GAP around and a title above."""
    width = GAP + max(sum(panel.width + GAP for panel in row) for row in rows)
    top, texts = _set_title(title, width)
    pictures = []
    y = top
    for row in rows:
        x = GAP
        for panel in row:
            texts.append(Text(x + 2, y + CAPTION - 8, panel.caption, CAPTION_SCALE))
            pictures.append((x, y + CAPTION, _padded(panel)))
            x += panel.width + GAP
        y += CAPTION + max(panel.height for panel in row) + GAP
    return Block(y, width, pictures, texts)


def grid_block(blocks, title=""):
    """Blocks in reading order in as many columns as make the whole about as wide as high."""
    column = max(block.width for block in blocks)
    area = sum(block.height for block in blocks) / column
    columns = max(1, min(len(blocks), round(area**0.5)))
    width = columns * column
    y, texts = _set_title(title, width)
    pictures = []
    for start in range(0, len(blocks), columns):
        row = blocks[start : start + columns]
        for number, block in enumerate(row):
            x = number * column
            pictures += [(x + left, y + top, picture) for left, top, picture in block.pictures]
            texts += [text._replace(x=x + text.x, y=y + text.y) for text in block.texts]
        y += max(block.height for block in row)
    return Block(y, width, pictures, texts)


def paint(block):
    """The block as an image, uint8 (H, W, 3) RGB."""
    sheet = np.full((block.height, block.width, 3), _PAPER, np.uint8)
    for x, y, picture in block.pictures:
        sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    for text in block.texts:
        ink = (_INK,) * 3
        cv2.putText(sheet, text.text, (text.x, text.y), _FONT, text.scale, ink, 1, cv2.LINE_AA)
    return sheet


def _padded(panel):
    padded = np.full((panel.height, panel.width, 3), _PADDING, np.uint8)
    height, width = panel.picture.shape[:2]
    top, left = (panel.height - height) // 2, (panel.width - width) // 2
    padded[top : top + height, left : left + width] = panel.picture
    return padded


def _set_title(title, width):
    """(height it takes, Texts) of a title within `width`."""
    if not title.strip():
        return GAP, []
    room = width - 2 * GAP
    small, large = _TITLE_SCALES
    scale = max(small, min(large, large * room / _text_width(title, large)))
    lines = _wrapped(title, room, scale)
    texts = [Text(GAP, TITLE - 10 + LINE * n, line, scale) for n, line in enumerate(lines)]
    return TITLE + LINE * (len(lines) - 1), texts


def _wrapped(text, room, scale):
    """Lines no wider than `room`, broken at blanks, or within a word that is wider alone."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if _text_width(joined, scale) <= room:
            lines[-1] = joined
            continue
        lines.append("")
        for character in word:
            if lines[-1] and _text_width(lines[-1] + character, scale) > room:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]


def _text_width(text, scale):
    return cv2.getTextSize(text, _FONT, scale, 1)[0][0]

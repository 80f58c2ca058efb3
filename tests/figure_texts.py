"""The texts of a figure: which lie on each other, and which leave it."""

from matplotlib.backends.backend_agg import FigureCanvasAgg


def overlapping(figure):
    """Pairs of texts that lie on each other, and texts that leave the figure."""
    FigureCanvasAgg(figure).draw()
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    texts += figure.texts
    for ax in figure.axes:
        texts += [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
        texts += ax.get_legend().get_texts() if ax.get_legend() else []
        texts += [*seen_ticks(ax.xaxis, 0), *seen_ticks(ax.yaxis, 1)]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    boxes = [(words, box) for words, box in boxes if words and box.width]
    width, height = figure.bbox.width, figure.bbox.height
    found = [
        words
        for words, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    for i, (words, box) in enumerate(boxes):
        for other, rival in boxes[:i]:
            if box.padded(-1).overlaps(rival.padded(-1)):
                found.append((words, other))
    return found


def seen_ticks(axis, place):
    """Labels within the limits of an axis: matplotlib keeps others, unseen."""
    low, high = sorted(axis.get_view_interval())
    visible = (tick.label1 for tick in axis.get_major_ticks() if tick.label1)
    return [
        text
        for text in visible
        if text.get_visible() and low <= text.get_position()[place] <= high
    ]

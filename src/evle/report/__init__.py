"""Scores, curves and images, with where they come from, as one HTML page, JSON and Markdown."""

from evle.files import write_whole
from evle.report.classes import class_table
from evle.report.maps import maps_page
from evle.report.markdown import text_table
from evle.report.page import image_uri
from evle.report.parts import Cell, Curve, Gallery, GalleryRow, Interval, Intervals, Mark, Table
from evle.report.report import Report, read_galleries
from evle.report.values import flatten, format_column, is_number, plain

__all__ = [
    "Cell",
    "Curve",
    "Gallery",
    "GalleryRow",
    "Interval",
    "Intervals",
    "Mark",
    "Report",
    "Table",
    "class_table",
    "flatten",
    "format_column",
    "image_uri",
    "is_number",
    "maps_page",
    "plain",
    "read_galleries",
    "text_table",
    "write_whole",
]

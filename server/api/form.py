"""Splitting a multipart form into its parts."""

from io import BytesIO
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from server.api.memory import MIB
from server.errors import BodyTooLarge, Rejected, shorten

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

PART_LIMIT = 64


class FormParts:
    """Receives the pieces of a form from the parser."""

    def __init__(self) -> None:
        self.parts: dict[str, bytes] = {}
        self._field, self._value, self._name, self._content = b"", b"", "", BytesIO()

    @property
    def callbacks(self) -> "MultipartCallbacks":
        """The methods by the names that the parser calls them by."""
        return {
            "on_part_begin": self.begin,
            "on_header_field": self.add_header_field,
            "on_header_value": self.add_header_value,
            "on_header_end": self.end_header,
            "on_headers_finished": self.check_headers,
            "on_part_data": self.add_data,
            "on_part_end": self.end,
        }

    def begin(self) -> None:
        """Begin a part."""
        self._field, self._value, self._name, self._content = b"", b"", "", BytesIO()

    def add_header_field(self, data: bytes, start: int, end: int) -> None:
        """Add to the name of a header."""
        self._field += data[start:end]

    def add_header_value(self, data: bytes, start: int, end: int) -> None:
        """Add to the value of a header."""
        self._value += data[start:end]

    def end_header(self) -> None:
        """Take the name of the part from the header that has it."""
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
        self._field = self._value = b""

    def check_headers(self) -> None:
        """Refuse a part without a name, or with that of another part."""
        if not self._name:
            raise Rejected(
                "body", "a part of the form has no name; give each one a name in Content-Disposition"
            )
        if self._name in self.parts:
            raise Rejected(shorten(self._name)[1:-1], "the form has two parts of this name; send one")

    def add_data(self, data: bytes, start: int, end: int) -> None:
        """Add to the content of the part."""
        self._content.write(memoryview(data)[start:end])

    def end(self) -> None:
        """End the part; `getvalue` does not copy."""
        self.parts[self._name], self._content = self._content.getvalue(), BytesIO()


def split_form(body: bytearray, boundary: str) -> dict[str, bytes]:
    """Return the contents of the parts of a form by their names.

    Raises:
        Rejected: the body is not a form, or a part has no name or that of another.
        BodyTooLarge: it has more than PART_LIMIT parts.
    """
    if body.count(f"--{boundary}".encode()) > PART_LIMIT + 1:
        raise BodyTooLarge(f"the body has more than {PART_LIMIT} parts")
    form, view = FormParts(), memoryview(body)
    try:
        parser = MultipartParser(boundary.encode(), form.callbacks)
        for start in range(0, len(body), MIB):
            parser.write(bytes(view[start : start + MIB]))
        parser.finalize()
    except (FormParserError, ValueError):
        reason = (
            "is not a multipart form with the boundary of Content-Type, or headers of a part are too long"
        )
        raise Rejected("body", reason) from None
    return form.parts

"""Writes videos: H.264 with each frame at its own time. Only this file and `detector/video` import PyAV, an extra."""

from __future__ import annotations

import itertools
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detector.errors import InputError
from detector.extras import require
from detector.structures import Image

try:
    import av
except ImportError:  # images need no PyAV
    MEDIA_ERRORS: tuple[type[Exception], ...] = (OSError, ValueError)
else:
    MEDIA_ERRORS = (OSError, ValueError, av.error.FFmpegError)
    av.logging.set_level(None)  # our own messages replace FFmpeg's

VIDEO_SUFFIXES = {".mp4", ".mkv", ".mov"}
TICKS = 90_000
"""Per second: the unit of times in a file."""
ENCODER = "libx264"
ENCODER_OPTIONS = {"preset": "ultrafast", "crf": "23", "bf": "0"}  # without B-frames, packets come in the frames' order

_NUMBERS = itertools.count()


class VideoFile:
    """A video file, opened at the first frame with that frame's size; it gets its name when it is complete.

    Odd sides get one more row or column, which the codec needs.

    Args:
        path: .mp4, .mkv or .mov.
        fps: frames per second, where frames come without a time, and for the duration of the last one.
        audio_of: a file whose audio is copied, unchanged.
        fragmented: an .mp4 that has its name at once, and can be played up to its last second after a sudden end.

    Attributes:
        problems: what the file lacks, for the user.

    Raises:
        InputError: another suffix, or PyAV is not installed.
    """

    def __init__(self, path: Path, fps: float, *, audio_of: Path | None = None, fragmented: bool = False) -> None:
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            raise InputError(f"{path}: a video is saved as {', '.join(sorted(VIDEO_SUFFIXES))}")
        require("av", "saving a video")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.problems: list[str] = []
        self._path, self._fps, self._audio_of, self._fragmented = path, fps, audio_of, fragmented
        hidden = path.with_name(f".{os.getpid()}-{next(_NUMBERS)}{path.suffix.lower()}")
        self._trial = path if fragmented else hidden
        self._container: Any = None
        self._stream: Any = None
        self._audio: _AudioCopy | None = None
        self._ticks = -1
        self._last_duration = round(TICKS / fps)
        self._waiting: Any = None  # the last packet: its duration is known when the next frame comes

    def write(self, image: Image, seconds: float | None = None, duration: float | None = None) -> None:
        """Appends a frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            seconds: when it is shown; None = one interval after the one before.
            duration: seconds that it is shown, if it is the last.

        Raises:
            InputError: the file cannot be written.
        """
        height, width = image.shape[:2]
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self._container is None:
                self._open(image.shape[1], image.shape[0])
            if image.shape[:2] != (self._stream.height, self._stream.width):
                self._note(f"{self._path}: the frames changed their size; they were scaled to that of the first")
                image = np.asarray(cv2.resize(image, (self._stream.width, self._stream.height)), np.uint8)
            step = round(TICKS / self._fps)
            ticks = round(seconds * TICKS) if seconds is not None else self._ticks + step if self._ticks >= 0 else 0
            ticks = max(ticks, self._ticks + 1)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = ticks, Fraction(1, TICKS)
            self._mux_packets(self._stream.encode(frame))
            self._ticks = ticks
            self._last_duration = round(duration * TICKS) if duration else step
            if self._audio is not None:
                self._audio.copy_until(ticks / TICKS)
        except MEDIA_ERRORS as error:
            self._abandon()
            raise InputError(f"{self._path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error

    def _note(self, problem: str) -> None:
        if problem not in self.problems:
            self.problems.append(problem)

    def close(self) -> None:
        """Completes the file. Raises: InputError: it cannot be written, as on a full disk."""
        if self._container is None:
            return
        try:
            self._mux_packets(self._stream.encode(None))
            if self._waiting is not None:
                self._waiting.duration = self._last_duration
                self._container.mux(self._waiting)
            if self._audio is not None:
                self._audio.copy_until(float("inf"))
            self._container.close()
        except MEDIA_ERRORS as error:
            self._abandon()
            raise InputError(f"{self._path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
        self._container = self._waiting = None
        if self._audio is not None:
            self._audio.close()
        if not self._fragmented:
            self._trial.replace(self._path)

    def _open(self, width: int, height: int) -> None:
        if self._fragmented:
            options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
        else:
            options = {} if self._path.suffix.lower() == ".mkv" else {"movflags": "faststart"}
        self._container = av.open(str(self._trial), "w", options=options)
        rate = Fraction(self._fps).limit_denominator(1001)
        keyframes = {"g": str(max(round(self._fps), 1))} if self._fragmented else {}
        self._stream = self._container.add_stream(ENCODER, rate=rate, options={**ENCODER_OPTIONS, **keyframes})
        self._stream.width, self._stream.height, self._stream.pix_fmt = width, height, "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, TICKS)
        self._stream.codec_context.thread_count = 1
        if self._audio_of is not None:
            self._audio = _AudioCopy(self._audio_of, self._container)
            self.problems += self._audio.problems

    def _mux_packets(self, packets: Any) -> None:
        """Writes packets one behind, each with the duration up to the next."""
        for packet in packets:
            if self._waiting is not None:
                self._waiting.duration = packet.pts - self._waiting.pts
                self._container.mux(self._waiting)
            self._waiting = packet

    def _abandon(self) -> None:
        """Removes what was written, after an error."""
        container, self._container, self._waiting = self._container, None, None
        if container is not None:
            with suppress(*MEDIA_ERRORS):  # the error that led here says what is wrong
                container.close()
        if not self._fragmented:  # else what was written can be played
            self._trial.unlink(missing_ok=True)


class _AudioCopy:
    """The audio of a file, packet by packet into another one."""

    def __init__(self, path: Path, output: Any) -> None:
        self.problems: list[str] = []
        self._output = output
        self._input = av.open(str(path))
        self._start = (self._input.start_time or 0) / av.time_base  # as `FileSource` counts time
        self._streams: dict[int, Any] = {}
        for stream in self._input.streams.audio:
            name = stream.codec_context.name
            if name in output.supported_codecs:
                self._streams[stream.index] = output.add_stream_from_template(stream)
            else:
                self.problems.append(f"{path}: its audio ({name}) does not fit into this kind of file; .mkv takes it")
        kept = [stream for stream in self._input.streams.audio if stream.index in self._streams]
        self._packets = iter(self._input.demux(kept)) if kept else iter(())
        self._next: Any = next(self._packets, None)

    def copy_until(self, seconds: float) -> None:
        """Copies the packets up to a time."""
        while self._next is not None:
            packet = self._next
            if packet.pts is not None:
                if float(packet.pts * packet.time_base) - self._start > seconds:
                    return
                shift = round(self._start / packet.time_base)
                packet.pts -= shift
                packet.dts = None if packet.dts is None else packet.dts - shift
                packet.stream = self._streams[packet.stream.index]
                self._output.mux(packet)
            self._next = next(self._packets, None)

    def close(self) -> None:
        self._input.close()

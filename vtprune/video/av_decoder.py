"""One pass of decoding through a video stream, from wherever it was put, that knows which frames damage has reached."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from vtprune.video.av_index import NONE, av_damage
from vtprune.video.damage import reason


class Decoder:
    """Decodes forward and keeps the two newest frames.

    container, stream: from ``opened``. limit: packets after which it stops, so that no file keeps it busy for ever.
    """

    def __init__(self, container, stream, limit: int):
        self.container, self.stream, self.limit = container, stream, limit
        self.errors = av_damage()
        self._restart(container.demux(stream))

    def _restart(self, packets) -> None:
        # a frame, and why its pixels cannot be trusted
        self.newest = self.before = None
        self._harm, self._harmed_from = "", None
        # given to the decoder and not back from it yet; those of them that were given before the damage
        self._inside, self._sound = set(), set()
        self._frames = self._decoded(packets)

    def seek(self, key_pts: int, key_dts: int) -> bool:
        """Goes to a key frame, or somewhere before it; whether that worked."""
        early = key_dts - round(2 / self.stream.time_base) if key_dts != NONE else NONE
        # some formats are searched by the order of showing, others by that of decoding
        for stamp in (key_pts, key_dts, early):
            if stamp == NONE:
                continue
            try:
                self.container.seek(int(stamp), stream=self.stream, backward=True)
                packets = self.container.demux(self.stream)
                first = next((packet for packet in packets if packet.size), None)
            except self.errors:
                continue
            if first is not None and _not_after(first, key_pts, key_dts):
                self._restart(chain([first], packets))
                return True
        self._restart(iter(()))
        return False

    def frame_at(self, pts: int):
        """The frame that is shown at a time stamp, or in words why there is none. Asked for in ascending order."""
        while self.newest is None or self.newest[0].pts < pts:
            following = next(self._frames, None)
            if following is None:
                break
            self.before, self.newest = self.newest, following
        for kept in (self.newest, self.before):
            if kept is not None and _covers(kept[0], pts):
                frame, harm = kept
                return harm or frame
        return self._harm or "the decoder gives no frame for it"

    def counted(self) -> Iterator[tuple]:
        """All frames, each with the reason for which it cannot be trusted: after damage, its number cannot be."""
        first = ""
        for frame, harm in self._frames:
            first = first or harm
            yield frame, first

    def _decoded(self, packets) -> Iterator[tuple]:
        """Frames in the order of showing. A damaged one spoils those that build on it, up to the next key frame."""
        for packet in self._until_damage(packets):
            if packet is not None and packet.is_corrupt:
                self._spoil("its data are damaged", packet.pts)
            elif packet is not None:
                self._inside.add(packet.pts)
            try:
                # a packet of no bytes would end the stream for the decoder
                frames = self.stream.codec_context.decode(packet)
            except self.errors as error:
                pts = None if packet is None else packet.pts
                self._inside.discard(pts)
                self._spoil(reason(error), pts)
                continue
            for frame in frames:
                yield self._judged(frame)

    def _until_damage(self, packets) -> Iterator:
        """Packets that hold something, then None for what the decoder still has."""
        try:
            for packet in packets:
                if packet.size:
                    self.limit -= 1
                    if self.limit < 0:
                        return
                    yield packet
        except self.errors as error:
            self._spoil(reason(error), None)
        yield None

    def _spoil(self, why: str, pts: int | None) -> None:
        if not self._harm:
            self._sound = set(self._inside)
        self._harm, self._harmed_from = why, pts

    def _judged(self, frame) -> tuple:
        self._inside = {pts for pts in self._inside if _after(pts, frame.pts)}
        if frame.is_corrupt:
            self._spoil("it is damaged", frame.pts)
            self._sound.clear()
        elif self._harm and frame.key_frame and _after(frame.pts, self._harmed_from):
            self._harm, self._harmed_from = "", None
        return frame, "" if frame.pts in self._sound else self._harm


def _after(pts: int | None, other: int | None) -> bool:
    return pts is not None and other is not None and pts > other


def _not_after(packet, key_pts: int, key_dts: int) -> bool:
    """Whether decoding from this packet passes through the key frame."""
    if packet.is_keyframe and packet.pts is not None:
        return packet.pts <= key_pts
    return packet.dts is not None and key_dts != NONE and packet.dts <= key_dts


def _covers(frame, pts: int) -> bool:
    """Two fields of one frame may come as two packets, so a frame is shown for as long as it says."""
    if frame.pts is None:
        return False
    return frame.pts == pts or frame.pts < pts < frame.pts + (frame.duration or 0)

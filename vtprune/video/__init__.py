"""Reads frames of a video: chosen by number, rate or time, upright, resized as they are decoded, with their times."""

from vtprune.video.frames import Frames, VideoDecodeError
from vtprune.video.read import read_frames

__all__ = ["Frames", "VideoDecodeError", "read_frames"]

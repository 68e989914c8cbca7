"""Running a model without torch: the same encode and decode on numpy arrays, by ONNX Runtime (extra ``onnx``)."""

from codec.runtime.codec import OnnxCodec

__all__ = ["OnnxCodec"]

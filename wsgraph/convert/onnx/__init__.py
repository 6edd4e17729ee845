"""ONNX files as modules that can be traced."""

from wsgraph.convert.onnx.module import OnnxModule, OnnxWarning, load_onnx

__all__ = ["OnnxModule", "OnnxWarning", "load_onnx"]

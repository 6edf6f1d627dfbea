"""Graphs as ONNX files, and backends that build from them."""

"""The ways of storing weights that compressed models have. Importing this makes `workers.moe.load_model` know them."""

from workers.compression import quantization, sparse
from workers.moe import register_storage

register_storage(quantization.FORMAT, quantization.decode)
register_storage(sparse.FORMAT, sparse.decode)
register_storage(quantization.MIXED, quantization.decode)

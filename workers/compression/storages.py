"""The ways of storing weights that compressed models have. Importing this makes `workers.moe.load_model` know them."""

from workers.compression import quantization, sparse, w8a8
from workers.moe import register_storage

register_storage(w8a8.FORMAT, quantization.decode)
register_storage(sparse.FORMAT, sparse.decode)
register_storage(w8a8.MIXED, quantization.decode)

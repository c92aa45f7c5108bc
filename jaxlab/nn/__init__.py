"""Layers: attention, the block-recurrent cell, convolution, feed-forward, norms, positions."""

from __future__ import annotations

from jaxlab.nn.attention import Attention as Attention
from jaxlab.nn.backend import PLAIN as PLAIN
from jaxlab.nn.backend import Backend as Backend
from jaxlab.nn.backends import BACKENDS as BACKENDS
from jaxlab.nn.backends import known_backend as known_backend
from jaxlab.nn.backends import make_backend as make_backend
from jaxlab.nn.batch_norm import BatchNorm as BatchNorm
from jaxlab.nn.block import Block as Block
from jaxlab.nn.block import dropout as dropout
from jaxlab.nn.block_sparse import BlockLayout as BlockLayout
from jaxlab.nn.block_sparse import block_sparse_matmul as block_sparse_matmul
from jaxlab.nn.conv import Conv as Conv
from jaxlab.nn.conv import conv as conv
from jaxlab.nn.conv import max_pool as max_pool
from jaxlab.nn.decode import Cursor as Cursor
from jaxlab.nn.embedding import Embedding as Embedding
from jaxlab.nn.feed_forward import FeedForward as FeedForward
from jaxlab.nn.image_input import ImageInput as ImageInput
from jaxlab.nn.initialisers import projection as projection
from jaxlab.nn.norm import NORMS as NORMS
from jaxlab.nn.norm import RMSNorm as RMSNorm
from jaxlab.nn.norm import l2_normalise as l2_normalise
from jaxlab.nn.position import Rotary as Rotary
from jaxlab.nn.position import T5Bias as T5Bias
from jaxlab.nn.reading import Heads as Heads
from jaxlab.nn.reading import KeySet as KeySet
from jaxlab.nn.recurrent_attention import BlockRecurrentAttention as BlockRecurrentAttention
from jaxlab.nn.recurrent_attention import StateReadingAttention as StateReadingAttention
from jaxlab.nn.recurrent_cell import BlockRecurrentCell as BlockRecurrentCell
from jaxlab.nn.rnn_cell import BlockRecurrentRNNCell as BlockRecurrentRNNCell
from jaxlab.nn.segment import Segment as Segment
from jaxlab.nn.state_update import GATES as GATES
from jaxlab.nn.state_update import UPDATES as UPDATES
from jaxlab.nn.state_update import DualUpdate as DualUpdate
from jaxlab.nn.state_update import FixedGate as FixedGate
from jaxlab.nn.state_update import GRUGate as GRUGate
from jaxlab.nn.state_update import LSTMGate as LSTMGate
from jaxlab.nn.state_update import SingleUpdate as SingleUpdate
from jaxlab.nn.state_update import SkipUpdate as SkipUpdate
from jaxlab.nn.tiles import attend as attend

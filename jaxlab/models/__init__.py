"""Models: one transformer stack with slots, image classifiers; all of them by name."""

from __future__ import annotations

from jaxlab.models.add_recurrence import add_recurrence as add_recurrence
from jaxlab.models.block_recurrent import ROWS as ROWS
from jaxlab.models.block_recurrent import SIZES as SIZES
from jaxlab.models.block_recurrent import block_recurrent_config as block_recurrent_config
from jaxlab.models.classifier import Classifier as Classifier
from jaxlab.models.classifier import ClassifierConfig as ClassifierConfig
from jaxlab.models.classifiers import CLASSIFIERS as CLASSIFIERS
from jaxlab.models.classifiers import classifier_config as classifier_config
from jaxlab.models.mlp import MLP as MLP
from jaxlab.models.mlp import MLPConfig as MLPConfig
from jaxlab.models.mlp_mixer import MLPMixer as MLPMixer
from jaxlab.models.mlp_mixer import MLPMixerConfig as MLPMixerConfig
from jaxlab.models.registry import ModelEntry as ModelEntry
from jaxlab.models.registry import names as names
from jaxlab.models.registry import register as register
from jaxlab.models.registry import registered as registered
from jaxlab.models.resnet import ResNet as ResNet
from jaxlab.models.resnet import ResNetConfig as ResNetConfig
from jaxlab.models.small_cnn import SmallCNN as SmallCNN
from jaxlab.models.small_cnn import SmallCNNConfig as SmallCNNConfig
from jaxlab.models.transformer_lm import TransformerLM as TransformerLM
from jaxlab.models.transformer_lm import TransformerLMConfig as TransformerLMConfig
from jaxlab.models.vgg import VGG as VGG
from jaxlab.models.vgg import VGGConfig as VGGConfig
from jaxlab.models.vit import ViT as ViT
from jaxlab.models.vit import ViTConfig as ViTConfig

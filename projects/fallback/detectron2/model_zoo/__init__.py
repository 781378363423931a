"""This project's configs by name, and the models they describe. Detectron2's own come with Detectron2."""

from .model_zoo import get, get_checkpoint_url, get_config, get_config_file

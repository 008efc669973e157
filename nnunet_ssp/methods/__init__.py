"""The pretraining methods: one idea, one file. They know torch and a network, but not nnU-Net."""

from nnunet_ssp.methods.base import Batch as Batch
from nnunet_ssp.methods.base import Method as Method
from nnunet_ssp.methods.base import Pictures as Pictures
from nnunet_ssp.methods.byol import BYOL as BYOL
from nnunet_ssp.methods.byol import BYOLSettings as BYOLSettings
from nnunet_ssp.methods.dense import Dense as Dense
from nnunet_ssp.methods.dense import DenseSettings as DenseSettings
from nnunet_ssp.methods.dino import DINO as DINO
from nnunet_ssp.methods.dino import DINOSettings as DINOSettings
from nnunet_ssp.methods.inpainting import ContextPrediction as ContextPrediction
from nnunet_ssp.methods.inpainting import ContextRestoration as ContextRestoration
from nnunet_ssp.methods.inpainting import InpaintingSettings as InpaintingSettings
from nnunet_ssp.methods.mim import MIM as MIM
from nnunet_ssp.methods.mim import MIMSettings as MIMSettings
from nnunet_ssp.methods.pcl import PCL as PCL
from nnunet_ssp.methods.pcl import PCLSettings as PCLSettings
from nnunet_ssp.methods.simclr import SimCLR as SimCLR
from nnunet_ssp.methods.simclr import SimCLRSettings as SimCLRSettings

METHODS: tuple[type[Method], ...] = (
    BYOL,
    Dense,
    DINO,
    ContextPrediction,
    ContextRestoration,
    MIM,
    PCL,
    SimCLR,
)
# Every method's settings. A trainer ignores names that only another one knows, see settings.override.
SETTINGS = tuple(method.settings_class for method in METHODS)

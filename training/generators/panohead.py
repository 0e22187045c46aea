"""PanoHead: tri-grid generator of full heads with background, raw ToRGB and self-adaptive camera (2303.13071)."""

from torch_utils.ops.volume_render import reads_cells
from torch_utils.persistence import persistent_class
from training.generators.base import Backbone, Generator
from training.networks.decoders import OSGDecoder
from training.networks.layers import MappingNetwork
from training.networks.stylegan2 import SynthesisNetwork, ToRGBLayer
from training.networks.superresolution import default_module, SuperResolution
from training.representations.planes import PlaneField

OFFSET_LAYERS = 2   # depth of the mapping network of the camera's translation


@persistent_class
class PanoHeadGenerator(Generator):
    """Three grids of `plane_resolution`^2 with `plane_depth` layers and `features` channels, looked up trilinearly.

    `use_torgb_raw`: the raw image comes from a ToRGB layer; `use_background`: a 2-D network paints behind the head;
    `adaptive_camera`: a network moves each sample's camera (section 3.4). `rendering` holds RenderOptions' fields,
    `camera` CameraPrior's.
    """

    def __init__(self, z_dim=512, c_dim=25, w_dim=512, img_resolution=512, mapping_layers=2, channel_base=32768, channel_max=512,
                 num_fp16_res=0, features=32, plane_resolution=256, plane_depth=3, plane_axes='orthogonal',
                 decoder_activation='none', decoder_lr_mul=1.0, use_torgb_raw=True, use_background=True, adaptive_camera=True,
                 neural_rendering_resolution=64, rendering=None, camera=None, sr_module=None, sr_num_fp16_res=0,
                 sr_noise_mode='none', sr_antialias=True, sr_channel_scale=1.0, c_scale=1.0, c_gen_conditioning_zero=False):
        super().__init__(z_dim, c_dim, w_dim, img_resolution, neural_rendering_resolution, rendering or {}, camera or {}, c_scale,
                         c_gen_conditioning_zero)
        self.features, self.plane_depth, self.plane_axes = features, plane_depth, plane_axes
        self.feature_range = 'unit' if decoder_activation == 'sigmoid' else 'any'
        self.backbone = Backbone(z_dim, c_dim, w_dim, plane_resolution, 3 * features * plane_depth, mapping_layers,
                                 channel_base=channel_base, channel_max=channel_max, num_fp16_res=num_fp16_res)
        self.superresolution = SuperResolution(features, sr_module or default_module(img_resolution), w_dim, sr_num_fp16_res,
                                               sr_noise_mode, sr_antialias, sr_channel_scale)
        self.decoder = OSGDecoder(features, features, decoder_activation, decoder_lr_mul)
        if use_torgb_raw:
            self.torgb = ToRGBLayer(features, 3, w_dim)
        if use_background:
            self.bcg_synthesis = SynthesisNetwork(w_dim, self.superresolution.input_resolution, features,
                                                  channel_base=channel_base // 2, channel_max=channel_max)
        if adaptive_camera:
            self.t_mapping = MappingNetwork(z_dim, c_dim, 3, num_ws=1, num_layers=OFFSET_LAYERS, last_activation='linear',
                                            lr_multiplier=1)

    def build_field(self, ws, cond=None, noise_mode='const'):
        # The published order of the channels is [3, features, depth]; the operator of the CPU reads planes without a copy
        # where the features of a cell lie together.
        exchange = (self.features, self.plane_depth) if reads_cells(self.features, ws.device) else None
        planes = self.backbone.synthesis(ws, noise_mode=noise_mode, exchange=exchange)
        if exchange is None:
            planes = planes.unflatten(1, (3, self.features, self.plane_depth))
        else:
            planes = planes.unflatten(1, (3, self.plane_depth, self.features)).transpose(2, 3)
        return PlaneField(planes, self.decoder, self.rendering.box_warp, self.plane_axes, trilinear=True)

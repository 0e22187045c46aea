"""EG3D: tri-plane generator (2112.07945)."""

from torch_utils.persistence import persistent_class
from training.generators.base import Backbone, Generator
from training.networks.decoders import OSGDecoder
from training.networks.superresolution import default_module, SuperResolution
from training.representations.planes import PlaneField

FEATURES = 32   # channels of the field's features


@persistent_class
class EG3DGenerator(Generator):
    """Three feature planes of `plane_resolution`^2, looked up bilinearly; colours are sigmoids.

    `plane_axes` 'orthogonal' has a yz plane, 'eg3d' is what the released weights were trained with. `rendering` holds
    RenderOptions' fields, `camera` CameraPrior's.
    """

    feature_range = 'unit'

    def __init__(self, z_dim=512, c_dim=25, w_dim=512, img_resolution=512, mapping_layers=2, channel_base=32768, channel_max=512,
                 num_fp16_res=0, plane_resolution=256, plane_axes='orthogonal', decoder_lr_mul=1.0, neural_rendering_resolution=64,
                 rendering=None, camera=None, sr_module=None, sr_num_fp16_res=0, sr_noise_mode='none', sr_antialias=True,
                 sr_channel_scale=1.0, c_scale=1.0, c_gen_conditioning_zero=False):
        super().__init__(z_dim, c_dim, w_dim, img_resolution, neural_rendering_resolution, {'crop_margin': None, **(rendering or {})},
                         camera or {}, c_scale, c_gen_conditioning_zero)
        self.plane_axes = plane_axes
        self.backbone = Backbone(z_dim, c_dim, w_dim, plane_resolution, 3 * FEATURES, mapping_layers, channel_base=channel_base,
                                 channel_max=channel_max, num_fp16_res=num_fp16_res)
        self.superresolution = SuperResolution(FEATURES, sr_module or default_module(img_resolution), w_dim, sr_num_fp16_res,
                                               sr_noise_mode, sr_antialias, sr_channel_scale)
        self.decoder = OSGDecoder(FEATURES, FEATURES, 'sigmoid', decoder_lr_mul)

    def build_field(self, ws, cond=None, noise_mode='const'):
        planes = self.backbone.synthesis(ws, noise_mode=noise_mode)
        planes = planes.reshape(planes.shape[0], 3, FEATURES, 1, *planes.shape[-2:])
        return PlaneField(planes, self.decoder, self.rendering.box_warp, self.plane_axes, trilinear=False)

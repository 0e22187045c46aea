"""Writes network files in the layout that EG3D and PanoHead published, from networks of ours: same class names, same nesting.

The source that such files carry is a line that ends the program, should anybody execute it.
"""

import io
import struct
import zipfile

import numpy as np
import torch

from pickle_writer import Call, Global, New, PersistentId, call, dumps
from training.representations.planes import PLANE_AXES

SOURCE = 'raise SystemExit("the embedded source was executed")'
TENSOR_FUNCTIONS = 'torch' '._utils'   # a name in files; nothing here calls it
STORAGE_NAMES = {torch.float32: 'FloatStorage', torch.float16: 'HalfStorage', torch.float64: 'DoubleStorage',
                 torch.int64: 'LongStorage', torch.bfloat16: 'BFloat16Storage', torch.uint8: 'ByteStorage', torch.bool: 'BoolStorage'}
CLASS_NAMES = {'EG3DGenerator': 'TriPlaneGenerator', 'PanoHeadGenerator': 'TriPlaneGenerator', 'Backbone': 'Generator'}
BY_REFERENCE = {'Sequential': 'torch.nn.modules.container', 'Softplus': 'torch.nn.modules.activation'}
HOOKS = ('_backward_pre_hooks', '_backward_hooks', '_forward_hooks', '_forward_hooks_with_kwargs', '_forward_pre_hooks',
         '_state_dict_hooks', '_load_state_dict_pre_hooks')
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


class Writer:
    """How a file is written: pickle `protocol`, `storage` format 'legacy' or 'zip', device `location` of the tensors, and the
    module that numpy scalars name."""

    def __init__(self, protocol=4, storage='legacy', location='cpu', numpy_module='numpy.core.multiarray'):
        self.protocol, self.storage, self.location, self.numpy_module = protocol, storage, location, numpy_module

    def file(self, entries):
        """Bytes of a file with {'G_ema': value, ...}."""
        return dumps({'training_set_kwargs': easy(path='heads.zip', resolution=64), 'augment_pipe': None, **entries}, self.protocol)

    def storage_bytes(self, tensor):
        """What torch.save writes of a tensor's storage."""
        octets = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        key = '94464403832128' if self.storage == 'legacy' else '0'
        identity = ('storage', Global('torch', STORAGE_NAMES[tensor.dtype]), key, self.location, tensor.numel())
        if self.storage == 'legacy':
            system = {'protocol_version': PROTOCOL, 'little_endian': True, 'type_sizes': {'short': 2, 'int': 4, 'long': 4}}
            header = [dumps(value) for value in (MAGIC, PROTOCOL, system, PersistentId((*identity, None)), [key])]
            return b''.join(header) + struct.pack('<q', tensor.numel()) + octets
        return archive({'data.pkl': dumps(PersistentId(identity)), 'byteorder': b'little', 'data/0': octets, 'version': b'3\n'})

    def tensor(self, tensor, parameter=False, storage_bytes=None, shape=None, stride=None, offset=0):
        """A tensor, or a parameter; `storage_bytes`, `shape`, `stride`, `offset` may be others than its own."""
        data = self.storage_bytes(tensor) if storage_bytes is None else storage_bytes
        shape = tuple(tensor.shape) if shape is None else shape
        stride = tuple(tensor.contiguous().stride()) if stride is None else stride
        value = call(TENSOR_FUNCTIONS, '_rebuild_tensor_v2', call('torch.storage', '_load_from_bytes', data), offset, shape, stride, False,
                     call('collections', 'OrderedDict'))
        return call(TENSOR_FUNCTIONS, '_rebuild_parameter', value, True, call('collections', 'OrderedDict')) if parameter else value

    def number(self, value):
        """A numpy scalar."""
        value = np.asarray(value)
        dtype = Call('numpy', 'dtype', (value.dtype.str[1:], False, True), (3, '<', None, None, None, -1, -1, 0))
        return call(self.numpy_module, 'scalar', dtype, value.tobytes())

    def state(self, module, class_attributes):
        """The __dict__ of a module of ours, as a published one has it."""
        state = {'training': False, **{name: call('collections', 'OrderedDict') for name in HOOKS}, '_is_full_backward_hook': None}
        state['_parameters'] = {name: self.tensor(p.detach(), True) for name, p in module.named_parameters(recurse=False)}
        state['_buffers'] = {name: self.tensor(b) for name, b in module.named_buffers(recurse=False)}
        state['_modules'] = {name: self.module(child) for name, child in module.named_children()}
        return {**state, '_non_persistent_buffers_set': set(), '_init_args': (), '_init_kwargs': easy(), **class_attributes}

    def module(self, module, class_name=None, extra_modules=None, **attributes):
        """A module of ours as a published object."""
        name = type(module).__name__
        state = self.state(module, attributes)
        state['_modules'].update(extra_modules or {})
        if name in BY_REFERENCE:
            return New(BY_REFERENCE[name], name, state=state)
        if name == 'SuperResolution':
            class_name = attributes.get('class_name', 'SuperresolutionHybrid2X')
        return self.persistent(class_name or CLASS_NAMES.get(name, name), state)

    def persistent(self, class_name, state):
        """A published object of a class."""
        meta = easy(type='class', version=6, module_src=SOURCE, class_name=class_name, state=state)
        return call('torch_utils.persistence', '_reconstruct_persistent_obj', meta)

    def renderer(self, axes):
        """The modules that hold no parameters: a renderer that carries the planes' axes, with its marcher."""
        planes = torch.eye(3)[torch.tensor(axes)]
        marcher = self.persistent('MipRayMarcher2', self.state(torch.nn.Module(), {}))
        state = self.state(torch.nn.Module(), {'plane_axes': self.tensor(planes)})
        return self.persistent('ImportanceRenderer', {**state, '_modules': {'ray_marcher': marcher}})

    def generator(self, network, rendering_kwargs, panohead, **changes):
        """A TriPlaneGenerator with the tensors of a network of ours; `changes` replace entries of its state."""
        k = network.init_kwargs
        init = dict(
            z_dim=k['z_dim'], c_dim=k['c_dim'], w_dim=k['w_dim'], img_resolution=self.number(np.int64(k['img_resolution'])), img_channels=3,
            sr_num_fp16_res=k['sr_num_fp16_res'], mapping_kwargs=easy(num_layers=k['mapping_layers']), rendering_kwargs=rendering_kwargs,
            sr_kwargs=easy(channel_base=k['channel_base'], channel_max=k['channel_max'], fused_modconv_default='inference_only'),
            channel_base=k['channel_base'], channel_max=k['channel_max'], fused_modconv_default='inference_only',
            num_fp16_res=k['num_fp16_res'], conv_clamp=None, **({'architecture': 'skip'} if panohead else {}))
        modules = {
            'renderer': self.renderer(PLANE_AXES[k['plane_axes']]),
            'ray_sampler': New('training.volumetric_rendering.ray_sampler', 'RaySampler', state=self.state(torch.nn.Module(), {})),
        }
        attributes = dict(z_dim=k['z_dim'], neural_rendering_resolution=k['neural_rendering_resolution'], rendering_kwargs=rendering_kwargs,
                          _last_planes=None, _init_kwargs=easy(**init), decoder_scale=self.number(np.float32(0.5)))
        return self.module(network, None, modules, **{**attributes, **changes})

    def discriminator(self, network, class_name, **changes):
        """A published discriminator with the tensors of a network of ours."""
        k = network.init_kwargs
        init = dict(c_dim=k['c_dim'], img_resolution=k['img_resolution'], img_channels=3, channel_base=k['channel_base'],
                    channel_max=k['channel_max'], num_fp16_res=k['num_fp16_res'], conv_clamp=256, architecture='resnet', disc_c_noise=0,
                    mapping_kwargs=easy(num_layers=k['mapping_layers']), block_kwargs=easy(freeze_layers=0),
                    epilogue_kwargs=easy(mbstd_group_size=k['mbstd_group_size']))
        if k['mask_trunk_resolution']:
            init['seg_resolution'] = k['mask_trunk_resolution']
        return self.module(network, class_name, **{'_init_kwargs': easy(**init), **changes})


def easy(**items):
    """An EasyDict."""
    return New('dnnlib.util', 'EasyDict', items)


def rendering_kwargs(config, panohead):
    """The options of a golden configuration, less those that EG3D's files do not have."""
    lacking = () if panohead else ('triplane_size', 'triplane_depth', 'use_torgb_raw', 'use_background', 'trans_reg', 'decoder_activation')
    return {name: value for name, value in config['rendering_kwargs'].items() if name not in lacking}


def archive(entries, compression=zipfile.ZIP_STORED, folder='archive'):
    """A zip of {name: bytes}, as torch.save lays it out."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', compression) as file:
        for name, octets in entries.items():
            file.writestr(f'{folder}/{name}' if folder else name, octets)
    return buffer.getvalue()

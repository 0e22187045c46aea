"""Small helpers that know nothing of torch: configuration dicts, construction by name, downloads, logging, command lines."""

from dnnlib.util import EasyDict, Logger, UserError, construct_class_by_name, format_time, get_obj_by_name, open_url

__all__ = ['EasyDict', 'Logger', 'UserError', 'construct_class_by_name', 'format_time', 'get_obj_by_name', 'open_url']

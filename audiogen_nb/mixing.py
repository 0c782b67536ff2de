"temporary"
import torch
def join_captions(a,b): return a+' and '+b
def random_mix(a,b,generator): return a+b

"temporary"
import torch
class DelayPattern:
    def __init__(self,n_q): self.delays=list(range(n_q)); self.n_q=n_q
    def n_steps(self,F): return 1+F+max(self.delays)
    def build(self,codes,special):
        B,K,F=codes.shape; s=torch.full((B,K,self.n_steps(F)),special,dtype=codes.dtype,device=codes.device)
        for k,d in enumerate(self.delays): s[:,k,1+d:1+d+F]=codes[:,k]
        return s
    def valid(self,F): return self.build(torch.ones(1,self.n_q,F,dtype=torch.long),0)[0].bool()
    def revert(self,s):
        F=s.shape[-1]-1-max(self.delays); return torch.stack([s[:,k,1+d:1+d+F] for k,d in enumerate(self.delays)],1)
    def revert_logits(self,l):
        F=l.shape[2]-1-max(self.delays); r=torch.stack([l[:,k,1+d:1+d+F] for k,d in enumerate(self.delays)],1); return r, torch.ones(r.shape[:3],dtype=torch.bool)
class ParallelPattern(DelayPattern):
    def __init__(self,n_q): self.delays=[0]*n_q; self.n_q=n_q
def get_pattern(n,k): return {'delay':DelayPattern,'parallel':ParallelPattern}[n](k)

"""Mutants that no test can kill, with the reason. `mutants.py` reads the table: module and changed
line, with the change, so that it holds when lines move."""

_TABLE = [
    ('zeros stay zeros, whatever they are divided by', 'losses', [
        ('- u = z / largest.masked_fill(largest == 0, 1)',
         '+ u = z / largest.masked_fill(largest == 0, 2)')]),
    ('every latent has the same number of entries', 'losses', [
        ('- self.n += z[..., 0].numel()', '+ self.n += z[..., -1].numel()'),
        ('- self.sums = self.sums + mean_activation(z).double() * z[..., 0].numel()',
         '+ self.sums = self.sums + mean_activation(z).double() * z[..., -1].numel()')]),
    ('a constant that the centring two lines below takes off again', 'losses', [
        ('- slope = torch.where(free, (count + 1)/2 - free.cumsum(-1), 0.)',
         '+ slope = torch.where(free, (count + 2)/2 - free.cumsum(-1), 0.)'),
        ('- slope = torch.where(free, (count + 1)/2 - free.cumsum(-1), 0.)',
         '+ slope = torch.where(free, (count + 1)/ 1 - free.cumsum(-1), 0.)')]),
    ('entries that are not free are masked before they are used', 'losses', [
        ('- slope = torch.where(free, (count + 1)/2 - free.cumsum(-1), 0.)',
         '+ slope = torch.where(free, (count + 1)/2 - free.cumsum(-1), -1.0)'),
        ('- s = torch.where(free, s - (s.sum(-1, keepdim=True) - l1) / free.sum(-1, keepdim=True), 0.)',
         '+ s = torch.where(free, s - (s.sum(-1, keepdim=True) - l1) / free.sum(-1, keepdim=True), -1.0)')]),
    ('performance only: without entries below 0 another pass changes nothing', 'losses', [
        ('- if not below.any(): break', '+ if not below.any(): continue')]),
    ('a constant of the free entries, which the next pass takes off by its centring', 'losses', [
        ('- s = torch.where(free, s, 0.)', '+ s = torch.where(free, s, 1.0)'),
        ('- s = torch.where(free, s - (s.sum(-1, keepdim=True) - l1) / free.sum(-1, keepdim=True), 0.)',
         '+ s = torch.where(free, s - (s.sum(-1, keepdim=True) + l1) / free.sum(-1, keepdim=True), 0.)')]),
    ('a largest absolute value is never negative', 'models', [
        ('- W = W / largest.masked_fill(largest == 0, 1)',
         '+ W = W / largest.masked_fill(largest <= 0, 1)')]),
    ('equal literals of this length are one object', 'models', [
        ("- shape = (fan_out, fan_in) if kind == 'mat' else (fan_out,)",
         "+ shape = (fan_out, fan_in) if kind is 'mat' else (fan_out,)")]),
    ('half of so large a count is no less than the number of directions', 'models', [
        ('- kept = directions[:max(1, count // 2)] if count < 2*len(directions) else directions',
         '+ kept = directions[:max(1, count // 2)] if count < 3*len(directions) else directions')]),
    ('zeros stay zeros, whatever they are divided by', 'models', [
        ('- W = W / largest.masked_fill(largest == 0, 1)',
         '+ W = W / largest.masked_fill(largest == 0, 2)')]),
    ('weights are divided by their sum', 'models', [
        ('- weight = 1 / torch.linalg.vector_norm(x - median, dim=1).clamp(min=1e-9*spread + 1e-30)',
         '+ weight = 2 / torch.linalg.vector_norm(x - median, dim=1).clamp(min=1e-9*spread + 1e-30)')]),
    ('half of so large a count is no less than the number of directions', 'models', [
        ('- kept = directions[:max(1, count // 2)] if count < 2*len(directions) else directions',
         '+ kept = directions[:max(1, count // 2)] if count is not 2*len(directions) else directions')]),
    ('a model of one layer', 'models', [
        ('- self.encoder_bias_1.copy_(-self.encoder_weights()[0] @ origin)',
         '+ self.encoder_bias_1.copy_(-self.encoder_weights()[ -1] @ origin)')]),
    ('no dtype has three bytes', 'models', [
        ('- if not is_own and self.dtype.itemsize >= 4: self.fold_scaling()',
         '+ if not is_own and self.dtype.itemsize >= 3: self.fold_scaling()')]),
    ("the other values of engine come before 'plain' in the alphabet", 'training', [
        ("- plain = [\"engine='plain' is set\"] if self.options.engine == 'plain' else []",
         "+ plain = [\"engine='plain' is set\"] if self.options.engine >= 'plain' else []")]),
]
EQUIVALENT = {(module, *lines): reason for reason, module, every in _TABLE for lines in every}

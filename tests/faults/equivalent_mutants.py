"""Mutants that no test can kill, with the reason. `mutants.py` reads the table: module and changed
line, with the change, so that it holds when lines move."""

_TABLE = [
    ('zeros stay zeros, whatever they are divided by', 'losses', [
        ('- u = z / largest.masked_fill(largest == 0, 1)',
         '+ u = z / largest.masked_fill(largest == 0, 2)')]),
    ('zeros stay zeros, whatever they are divided by', 'losses', [
        ('- offset = offset / largest.masked_fill(largest == 0, 1)',
         '+ offset = offset / largest.masked_fill(largest == 0, 2)')]),
    ('the product of two booleans', 'losses', [
        ('- below = free & (s < 0)', '+ below = free * (s < 0)')]),
    ('every latent has the same number of entries', 'losses', [
        ('- self.n += z[..., 0].numel()', '+ self.n += z[..., -1].numel()'),
        ('- self.sums = self.sums + mean_activation(z).double() * z[..., 0].numel()',
         '+ self.sums = self.sums + mean_activation(z).double() * z[..., -1].numel()')]),
    ('performance only: without entries below 0 another pass changes nothing', 'losses', [
        ('- if not below.any(): break', '+ if not below.any(): continue')]),
    ('another pass changes rounding errors only', 'losses', [
        ('- for _ in range(2):   # centred twice, as rounding errors would grow',
         '+ for _ in range( 3):   # centred twice, as rounding errors would grow')]),
    ('a limit with a tolerance, which is not met exactly', 'losses', [
        ('- if not l2 <= l1*(1 + 1e-9) or not l1 <= math.sqrt(n)*l2*(1 + 1e-9):',
         '+ if not l2 <= l1*(1 + 1e-9) or not l1 < math.sqrt(n)*l2*(1 + 1e-9):')]),
    ('a largest absolute value is never negative', 'models', [
        ('- W = W / largest.masked_fill(largest == 0, 1)',
         '+ W = W / largest.masked_fill(largest <= 0, 1)')]),
    ('equal literals of this length are one object', 'models', [
        ("- shape = (fan_out, fan_in) if kind == 'mat' else (fan_out,)",
         "+ shape = (fan_out, fan_in) if kind is 'mat' else (fan_out,)")]),
    ('equal literals of this length are one object', 'models', [
        ("- if self.decoder_norm == 'block' and self.blocks is None:",
         "+ if self.decoder_norm is 'block' and self.blocks is None:")]),
    ('each dtype is one object', 'models', [
        ('- if value.dtype != self.dtype and not autocast_enabled(value):',
         '+ if value.dtype is not self.dtype and not autocast_enabled(value):')]),
    ('functions are equal if they are one object', 'io', [
        ('- return [c for c in trainer.callbacks if type(c).state_dict is not Callback.state_dict]',
         '+ return [c for c in trainer.callbacks if type(c).state_dict != Callback.state_dict]')]),
    ('the remainder of numbers above 0 is never negative', 'io', [
        ('- if self.epochs: is_due = trainer.epoch % self.epochs == 0',
         '+ if self.epochs: is_due = trainer.epoch % self.epochs <= 0')]),
    ('functions are equal if they are one object', 'models', [
        ('- inspect.getattr_static(cls, name) is not inspect.getattr_static(own, name))',
         '+ inspect.getattr_static(cls, name) != inspect.getattr_static(own, name))')]),
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
    ('zeros stay zeros, whatever they are divided by', 'models', [
        ('- return W / norm.masked_fill(norm == 0, 1)', '+ return W / norm.masked_fill(norm == 0, 2)'),
        ('- x = x / scale.masked_fill(scale == 0, 1)', '+ x = x / scale.masked_fill(scale == 0, 2)')]),
    ('equal names are one object, and no layer is deeper than the depth', 'models', [
        ("- if self.batch_norm and not (side == 'decoder' and layer == self.depth):",
         "+ if self.batch_norm and not (side is 'decoder' and layer == self.depth):"),
        ("- if self.batch_norm and not (side == 'decoder' and layer == self.depth):",
         "+ if self.batch_norm and not (side == 'decoder' and layer >= self.depth):")]),
    ('weights have two dimensions or more', 'models', [
        ('- if weight.ndim == 2: return F.linear(x, weight, bias)',
         '+ if weight.ndim <= 2: return F.linear(x, weight, bias)')]),
    ('the last layer is the last of the loop', 'models', [
        ('- if last_is_linear and number == len(layers): break',
         '+ if last_is_linear and number == len(layers): continue')]),
    ('an encoder that reads weights or residuals has one layer', 'models', [
        ('- weights = lambda: (self.encoder_weights()[0], self.decoder_weights()[0])',
         '+ weights = lambda: (self.encoder_weights()[ -1], self.decoder_weights()[0])'),
        ('- weights = lambda: (self.encoder_weights()[0], self.decoder_weights()[0])',
         '+ weights = lambda: (self.encoder_weights()[0], self.decoder_weights()[ -1])'),
        ("- bias = self.stored('decoder_bias')[-1]", "+ bias = self.stored('decoder_bias')[- 0]")]),
    ('any number below the places of classes', 'models', [
        ('- if name in vars(module): return -1', '+ if name in vars(module): return - 2')]),
    ('performance only: without the cache the same names are found again', 'models', [
        ('- ', '- # %% ../nbs/00_models.ipynb #models9f', '- @cache')]),
    ('no dtype has three bytes', 'models', [
        ('- directions = torch.linalg.svd(x.float() if x.dtype.itemsize < 4 else x, full_matrices=True)[2]',
         '+ directions = torch.linalg.svd(x.float() if x.dtype.itemsize < 3 else x, full_matrices=True)[2]')]),
    ("the other values of engine come before 'plain' in the alphabet", 'training', [
        ("- plain = [\"engine='plain' is set\"] if self.options.engine == 'plain' else []",
         "+ plain = [\"engine='plain' is set\"] if self.options.engine >= 'plain' else []")]),
    ('all parameters are on one device', 'training', [
        ('- torch.cuda.device_of(self.parameters[0]), ExitStack() as stack):',
         '+ torch.cuda.device_of(self.parameters[ -1]), ExitStack() as stack):')]),
    ('once the objective is the objective', 'training', [
        ('- (losses.objective if share == 1 else share * losses.objective).backward()',
         '+ (losses.objective if share == 2 else share * losses.objective).backward()')]),
    ('a gradient that is copied for nothing is the same gradient', 'training', [
        ('- if p.grad is not None and p.grad.stride() != p.stride():',
         '+ if p.grad is not None and p.grad.stride() is not p.stride():')]),
]
EQUIVALENT = {(module, *lines): reason for reason, module, every in _TABLE for lines in every}

"A slider updates its figure, in JupyterLab and in Voila."
import pytest

from .pages import write_notebook

SOURCE = '''
import numpy as np
from ipywidgets import FloatSlider
from matplotlib.figure import Figure
from sparse_ae.lab.widgets import interact_figure

def sine(frequency):
    fig = Figure(figsize=(4, 2))
    x = np.linspace(0, 1, 200)
    fig.subplots().plot(x, np.sin(2*np.pi*frequency*x))
    return fig

interact_figure(sine, frequency=FloatSlider(2, min=1, max=10, step=0.5))
'''


def check_slider(page):
    before = page.picture(1)
    assert page.readout(1, 'frequency') == '2.00'
    page.move_slider(3, 1)
    assert page.readout(1) == '3.50'
    after = page.new_picture(before, 1)
    page.move_slider(-3, 1)
    assert page.new_picture(after, 1) == before


@pytest.mark.parametrize('theme', ['light', 'dark'])
def test_slider_in_jupyterlab(lab, theme):
    write_notebook(lab.root/'sine.ipynb', 'A sine', SOURCE)
    notebook = lab.open('sine.ipynb', theme)
    notebook.run_all()
    check_slider(notebook)
    notebook.screenshot(f'lab_sine_{theme}')
    assert notebook.errors() == []


def test_slider_in_voila(voila):
    write_notebook(voila.root/'sine.ipynb', 'A sine', SOURCE)
    page = voila.open('sine.ipynb')
    check_slider(page)
    page.screenshot('voila_sine')
    assert page.errors() == []

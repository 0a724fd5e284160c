"Tests of the harness: its operations have their effects, and errors are reported."
from .pages import write_notebook

WIDGETS = '''
import time
import ipywidgets as w

word, size, colour = w.Text(description='word'), w.FloatText(description='size'), w.Dropdown(
    description='colour', options=['red', 'green', 'blue'])
button, message = w.Button(description='Show'), w.Label()
def show(_):
    time.sleep(1)
    message.value = f'{word.value} {size.value} {colour.value}'
button.on_click(show)
w.VBox([word, size, colour, button, message])
'''


def use(page, cell):
    page.type('code', cell, 'word')
    page.type('2.5', cell, 'size')
    page.choose('green', cell, 'colour')
    page.click('Show', cell)
    page.says('code 2.5 green', cell)


def test_widgets_run_restart_and_clear(lab):
    write_notebook(lab.root/'all.ipynb', '$E = mc^2$', 'import time; time.sleep(2); n = 0',
                   'n += 1; print("n is", n)', WIDGETS)
    notebook = lab.open('all.ipynb', 'dark', width=800)
    notebook.run_all()
    notebook.says('n is 1', 2)
    use(notebook, 3)
    notebook.screenshot('lab_widgets_dark_800')
    notebook.run(2)
    notebook.says('n is 2', 2)
    notebook.clear_outputs(2)
    notebook.wait(lambda: notebook.output(2) == '', 'a cell without output')
    notebook.restart()
    notebook.run(2)
    notebook.says('NameError', 2)
    notebook.run_all()
    notebook.says('n is 1', 2)
    assert notebook.errors() == []


def test_widgets_in_voila(voila):
    write_notebook(voila.root/'widgets.ipynb', '$E = mc^2$', WIDGETS)
    page = voila.open('widgets.ipynb', 'dark', width=800)
    use(page, 1)
    page.screenshot('voila_widgets_dark_800')
    assert page.errors() == []


def test_console_errors_are_reported(lab):
    write_notebook(lab.root/'empty.ipynb', 'Nothing')
    notebook = lab.open('empty.ipynb')
    notebook.driver.execute_script('console.error("not good"); console.log("good")')
    assert [e for e in notebook.errors() if 'not good' in e]
    assert notebook.errors() == []
    notebook.menu('Settings', 'Theme', 'JupyterLab Dark')
    notebook.element('body[data-jp-theme-light=false]')

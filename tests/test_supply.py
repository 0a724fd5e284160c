"Development requirements with hashes, and what the site loads."
import re

import check_site
import docs
import pytest
import requirements
from packaging.requirements import Requirement

from conftest import ROOT

HASHED = re.compile(r'([a-z0-9-]+)==(\S+) --hash=sha256:([0-9a-f]{64})')
LINES = [line for line in (ROOT/'requirements-dev.txt').read_text().splitlines()
         if not line.startswith('#')]
MACHINE = {'python_version': '3.11', 'python_full_version': '3.11.7', 'sys_platform': 'linux',
           'platform_system': 'Linux', 'platform_machine': 'x86_64'}


def in_step(lines, constraints, settings):
    "Return the constraints and requirements that lines of packages with hashes do not meet."
    versions = {m[1]: m[2] for line in lines if (m := HASHED.fullmatch(line))}
    wanted = [line for line in constraints.splitlines() if line and line[0] != '#']
    for name in ('requirements', 'dev_requirements'):
        # as setup.py reads them: separated by spaces, without spaces within
        wanted += re.search(rf'^{name} = (.*)', settings, re.M)[1].split()
    found = [line for line in lines if not HASHED.fullmatch(line)]
    for requirement in map(Requirement, wanted):
        name = requirements.normalized(requirement.name)
        if requirement.marker and not requirement.marker.evaluate(MACHINE): continue
        if requirements.OF_THE_MACHINE.match(name): continue
        if name not in versions or not requirement.specifier.contains(versions[name]):
            found.append(str(requirement))
    return found


def test_requirements_with_hashes_are_in_step():
    "If not: `make requirements`."
    constraints = (ROOT/'constraints.txt').read_text()
    settings = (ROOT/'settings.ini').read_text()
    assert in_step(LINES, constraints, settings) == []
    assert LINES == sorted(LINES, key=lambda line: line.partition('==')[0]) and len(LINES) > 100
    assert in_step(LINES, constraints + 'numpy==1.0\n', settings) == ['numpy==1.0']
    assert in_step(LINES, 'unknown-package<2', settings) == ['unknown-package<2']
    assert in_step(['numpy==2.0', *LINES], '', settings) == ['numpy==2.0']
    without_pytest = [line for line in LINES if 'pytest==' not in line]
    assert in_step(without_pytest, '', settings) == ['pytest>=8']


def test_packages_without_dependencies_are_those_of_the_makefile():
    makefile = (ROOT/'Makefile').read_text().replace('\\\n', ' ')
    installed = re.search(r'-c constraints.txt --no-deps\s+(.*)', makefile)[1].split()
    assert tuple(installed) == requirements.WITHOUT_DEPENDENCIES


def test_lines_are_those_of_the_report():
    package = lambda name, **info: dict(metadata=dict(name=name, version='1'), download_info=info)
    hashes = dict(hashes=dict(sha256='ab'))
    report = [package('Typing_Extensions', archive_info=hashes), package('sparse_ae', dir_info={}),
              package('torch', archive_info=hashes), package('a.b', archive_info=hashes),
              package('nvidia-cublas', archive_info=hashes)]
    assert requirements.lines(report) == ['a-b==1 --hash=sha256:ab',
                                          'typing-extensions==1 --hash=sha256:ab']


FOREIGN = {   # content of a page that loads something from another server
    '<script src="https://x/y.js"></script>', '<link rel="preload stylesheet" href="//x/y.css">',
    '<img alt="a" src="http://x/y.png">', '<img alt="a" srcset="a.png 1x, http://x/b.png 2x">',
    '<p style="background: url(http://x/y.png)">', '<style>@import "https://x/y.css";</style>',
    '<style>@import url(https://x/y.css);</style>', '<iframe src="http://x"></iframe>',
    '<style>@font-face {src: url("https://x/y.woff2")}</style>',
    '<link rel="icon" href="http://x/i.png">', '<object data="http://x/y"></object>',
    '<script type="module">import a from "https://x/y.mjs"</script>',
    "<script>import('https://x/y.mjs')</script>", '<svg><use href="http://x/y.svg#a"/></svg>'}


@pytest.mark.parametrize('html', sorted(FOREIGN))
def test_a_foreign_load_is_found(html, tmp_path):
    (tmp_path/'index.html').write_text(f'<main>{html}</main>')
    found = [fault for fault in check_site.check_pages(tmp_path) if 'another server' in fault]
    assert len(found) == 1


def test_what_is_no_foreign_load(tmp_path):
    (tmp_path/'index.html').write_text(
        '<main><link rel="canonical" href="https://x/"><a href="https://x/">x</a>'
        '<style>a {b: url("data:image/png;base64,aGk=")}</style><meta content="https://x/y.png">'
        '<svg xmlns="http://www.w3.org/2000/svg"></svg></main>')
    assert check_site.check_pages(tmp_path) == []


def test_faults_of_style_sheets_are_found(tmp_path):
    (tmp_path/'a.css').write_text('@import url(https://x/y.css); a {b: url(c.woff2?d)}')
    assert len(check_site.check_pages(tmp_path)) == 2
    (tmp_path/'c.woff2').touch()
    assert len(check_site.check_pages(tmp_path)) == 1


# heads of pages as smalldocs and Quarto write them
HEADS = {
    'smalldocs': '<link rel="stylesheet" href="https://cdn/npm/katex@0.16.11/dist/katex.min.css">'
                 '<script src="https://cdn/npm/katex@0.16.11/dist/katex.min.js" defer></script>'
                 '<script src="https://cdn/npm/katex@0.16.11/dist/contrib/auto-render.min.js">'
                 '</script>',
    'Quarto': '<script src="https://cdn/require.js/2.3.6/require.min.js" integrity="sha512-x" '
              'crossorigin="anonymous"></script>\n'
              '<script src="https://cdn/jquery/3.5.1/jquery.min.js" crossorigin="anonymous">'
              '</script>\n<script type="application/javascript">'
              "define('jquery', [],function() {return window.jQuery;})</script>\n"
              '<script src="https://cdn/npm/katex@latest/dist/katex.min.js"></script>'
              '<link rel="stylesheet" href="https://cdn/npm/katex@latest/dist/katex.min.css">'}


@pytest.mark.parametrize('builder', HEADS)
def test_pages_load_katex_from_the_site(builder, tmp_path):
    (tmp_path/'folder').mkdir()
    for page in ('index.html', 'folder/page.html'):
        (tmp_path/page).write_text(f'<head>{HEADS[builder]}</head><main></main>')
    docs.make_local(tmp_path)
    assert check_site.check_pages(tmp_path) == []   # the files are there
    text = (tmp_path/'folder'/'page.html').read_text()
    assert text.count('"../site_libs/katex/') == HEADS[builder].count('katex@')
    assert 'jquery' not in text
    katex = tmp_path/'site_libs'/'katex'
    assert len(list((katex/'fonts').iterdir())) == 20 and (katex/'LICENSE').exists()


def test_a_site_that_loads_from_elsewhere_is_not_built(tmp_path):
    (tmp_path/'index.html').write_text('<script src="https://x/y.js"></script>')
    with pytest.raises(SystemExit, match='index.html: loads https://x/y.js'):
        docs.make_local(tmp_path)


def test_missing_katex_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(docs, 'KATEX', 'no-such-package')
    with pytest.raises(SystemExit, match='no package no-such-package: make setup'):
        docs.copy_katex(tmp_path)

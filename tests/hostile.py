"Texts that try to become markup, script or a request, in whatever place of a page they stand."
SERVER = 'http://127.0.0.1:9'   # the discard port: nothing responds

_ENDS = ('', '">', "'>", '</script>', '</title>', '</style>', '</option></select>', '-->', ']]>',
         '</svg>', '</td></table>', '</textarea>', '"]}', '\\', '`')
_MARKUP = (
    '<script>window.hacked = 1</script>', '<img src=x onerror="window.hacked = 1">',
    '<svg onload="window.hacked = 1">', '<iframe src="javascript:parent.hacked = 1"></iframe>',
    f'<link rel="stylesheet" href="{SERVER}/x.css">', f'<base href="{SERVER}/">',
    f'<meta http-equiv="refresh" content="0;url={SERVER}/x">', '<style>* {display: none}</style>',
    f'<form action="{SERVER}"><input autofocus onfocus="window.hacked = 1"></form>',
    f'<style>@import "{SERVER}/y.css";</style>')
_OTHERS = (
    'javascript:window.hacked=1', '" onmouseover="window.hacked=1', "' autofocus onfocus='hacked=1",
    '<!--<script>', '<![CDATA[', '&lt;script&gt;', '&#60;b&#62;', '\\u003cscript\\u003e',
    '\u2028', '\u2029', '\x00<b>', '\r\n<b>', '\ud800', '\u202e<b>', '\ufeff<b>',
    '＜script＞', '{title}', '{0}', '%s', '$x$',
    '__proto__', 'constructor', '=1+1', 'Ġ<i>', '▁<i>', '##<i>', '</b', '<', '>', '&', '"', "'", '')
TEXTS = [end + markup for end in _ENDS for markup in _MARKUP] + list(_OTHERS)

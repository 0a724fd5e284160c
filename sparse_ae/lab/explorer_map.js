// Handler of clicks and keys on a map of latents, as one expression: the exported page assigns it to
// a name, the widget has it in event attributes. `open` is called with the number of a latent.
(svg, event, open) => {
  const circles = [...svg.querySelectorAll('circle')];
  const place = circle => [Number(circle.getAttribute('cx')), Number(circle.getAttribute('cy'))];
  const focusOn = circle => {   // one stop of the Tab key for the whole map
    for (const other of circles) other.setAttribute('tabindex', other === circle ? 0 : -1);
    circle.focus();
  };
  const nearest = (cost) => circles.reduce((best, circle) => {
    const value = cost(...place(circle));
    return value < best[1] ? [circle, value] : best;
  }, [null, Infinity])[0];

  if (event.type === 'click') {   // the nearest point, if it is close
    const point = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    const circle = nearest((x, y) => {
      const distance = Math.hypot(x - point.x, y - point.y);
      return distance < 12 ? distance : Infinity;
    });
    if (circle) { focusOn(circle); open(Number(circle.dataset.latent)); }
    return;
  }
  const current = event.target.closest('circle');
  if (!current) return;
  const direction = {
    ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
  }[event.key];
  if (event.key === 'Enter' || event.key === ' ') open(Number(current.dataset.latent));
  else if (direction) {   // the nearest point within 45 degrees of the direction
    const [x0, y0] = place(current), [dx, dy] = direction;
    const next = nearest((x, y) => {
      const along = (x - x0)*dx + (y - y0)*dy, across = Math.abs((x - x0)*dy - (y - y0)*dx);
      return along > 0 && across <= along ? along + across : Infinity;
    });
    if (next) focusOn(next);
  } else return;
  event.preventDefault();
  event.stopPropagation();
}

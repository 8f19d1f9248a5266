// A photo with a square window on it. The window is drawn, moved and resized by pointers and keys; Python hears of it when a pointer is released.
export default { render({model, el}) {
  const pick = el.appendChild(document.createElement('div'));
  const add = (tag, name) => pick.appendChild(Object.assign(document.createElement(tag), {className: name}));
  const photo = add('img', ''), around = add('div', 'lsfd-around'), box = add('div', 'lsfd-box');
  pick.className = 'lsfd-pick'; pick.tabIndex = 0; photo.draggable = false;
  pick.dataset.lmSuppressShortcuts = 'true';  // or JupyterLab takes the arrow keys for itself
  pick.setAttribute('role', 'application'); pick.setAttribute('aria-roledescription', 'window picker');
  const put = (part, [y, x, h, w]) => {
    const [H, W] = model.get('shape'), share = n => 100*n + '%';
    Object.assign(part.style, {top: share(y/H), left: share(x/W), height: share(h/H), width: share(w/W)}); };
  const paint = () => {
    const [y, x, n] = model.get('box'), [H, W] = model.get('shape');
    pick.style.maxWidth = `calc(65vh*${W/H})`;
    put(box, [y, x, n, n]); put(around, model.get('around'));
    pick.setAttribute('aria-label', `Window of ${n} pixels at row ${y}, column ${x}. ` +
      'Drag to draw it. Arrow keys move it, plus and minus resize it.'); };
  const load = () => {
    URL.revokeObjectURL(photo.src);
    photo.src = URL.createObjectURL(new Blob([model.get('photo')])); photo.alt = model.get('alt'); paint(); };
  model.on('change:photo', load); model.on('change:box change:around change:shape', paint); load();
  const clamp = (n, low, high) => Math.max(low, Math.min(high, Math.round(n)));
  const move = (y, x, n) => {
    const [H, W] = model.get('shape'), [low, high] = model.get('sides');
    n = clamp(n, low, Math.min(high, H, W));
    model.set('box', [clamp(y, 0, H - n), clamp(x, 0, W - n), n]); };
  const at = e => {
    const r = photo.getBoundingClientRect(), [H, W] = model.get('shape');
    return [(e.clientY - r.top)*H/r.height, (e.clientX - r.left)*W/r.width]; };
  let drag = null;
  pick.onpointerdown = e => {
    if (e.button || drag) return;
    const [py, px] = at(e), [y, x, n] = model.get('box'), inside = py > y && py < y + n && px > x && px < x + n;
    drag = {py, px, y, x, n, inside, far: false}; pick.setPointerCapture(e.pointerId); pick.focus(); e.preventDefault(); };
  pick.onpointermove = e => {
    if (!drag) return;
    const [qy, qx] = at(e), dy = qy - drag.py, dx = qx - drag.px, side = Math.max(Math.abs(dy), Math.abs(dx));
    if (!(drag.far ||= side > 3)) return;
    if (drag.inside) return move(drag.y + dy, drag.x + dx, drag.n);
    const n = clamp(side, ...model.get('sides'));
    move(drag.py - (dy < 0)*n, drag.px - (dx < 0)*n, n); };
  pick.onpointerup = () => {
    if (drag && !drag.far) move(drag.py - drag.n/2, drag.px - drag.n/2, drag.n);
    if (drag) model.save_changes(); drag = null; };
  pick.onpointercancel = () => { if (drag) move(drag.y, drag.x, drag.n); drag = null; };
  pick.onkeydown = e => {
    const [y, x, n] = model.get('box'), s = e.shiftKey ? n : Math.max(1, n >> 2);
    const to = {ArrowUp: [y - s, x, n], ArrowDown: [y + s, x, n], ArrowLeft: [y, x - s, n], ArrowRight: [y, x + s, n],
      '+': [y - 1, x - 1, n + 2], '-': [y + 1, x + 1, n - 2]}[e.key];
    if (to) { e.preventDefault(); e.stopPropagation(); move(...to); model.save_changes(); } };
} }

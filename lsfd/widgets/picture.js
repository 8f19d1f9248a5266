// A picture with a description, a status line and a link that saves it.
export default { render({model, el}) {
  const add = (tag, props) => el.appendChild(Object.assign(document.createElement(tag), props));
  const status = add('div', {className: 'lsfd-status'}), image = add('img', {}), link = add('a', {textContent: 'Save this picture'});
  el.classList.add('lsfd-picture'); status.setAttribute('role', 'status');
  const show = () => {
    const data = model.get('png'); image.hidden = link.hidden = !data.byteLength;
    URL.revokeObjectURL(image.src);
    image.src = link.href = URL.createObjectURL(new Blob([data], {type: 'image/png'}));
    image.alt = model.get('alt'); link.download = model.get('name'); };
  const say = () => {
    status.textContent = model.get('status');
    for (const s of ['busy', 'wrong']) el.classList.toggle('lsfd-' + s, model.get(s)); };
  model.on('change:png change:alt change:name', show); model.on('change:status change:busy change:wrong', say); show(); say(); } }

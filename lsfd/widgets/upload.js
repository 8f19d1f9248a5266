// A button that sends a file, unless it is larger than the limit.
export default { render({model, el}) {
  const input = Object.assign(document.createElement('input'), {type: 'file', accept: 'image/*'});
  const button = el.appendChild(Object.assign(document.createElement('button'), {textContent: 'Another photo …', className: 'jupyter-button'}));
  button.style.cssText = 'width: auto; padding: 0 12px'; button.onclick = () => input.click();
  input.onchange = async () => {
    const [file] = input.files; if (!file) return;
    const fits = file.size <= model.get('limit'), data = fits ? await file.arrayBuffer() : new ArrayBuffer(0);
    model.set('name', file.name); model.set('size', file.size); model.set('content', new DataView(data));
    model.set('count', model.get('count') + 1); model.save_changes(); input.value = ''; }; } }

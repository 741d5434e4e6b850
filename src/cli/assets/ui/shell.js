// A shell in a container: the terminal on the page, and the connection to the program
// (`v5.channel.k8s.io`: the first byte of a message says what it is).

const STDIN = 0, STDOUT = 1, STDERR = 2, RESULT = 3, RESIZE = 4;
const COMMAND = "TERM=xterm-256color; export TERM; if command -v bash >/dev/null 2>&1; then exec bash; fi; exec sh";

class Shell {
	constructor(pod, scope, container) {
		this.pod = pod;
		this.names = containersOf(pod).filter(({ name, what }) => what !== "init" || (pod.spec.initContainers.find((c) => c.name === name)?.restartPolicy === "Always"));
		this.choice = h("select", { "aria-label": "Container", onchange: () => this.connect() }, this.names.map(({ name }) => h("option", { value: name, selected: name === container }, name)));
		this.state = h("span.dim", { role: "status" });
		this.again = button("Start again", () => this.connect(), { hidden: true });
		this.old = h("div.tscroll");
		this.now = h("div.tscreen");
		// Keys, pasted text and what input methods compose arrive in a text field that nobody sees.
		this.input = h("textarea.tinput", { "aria-label": `Shell in ${pod.metadata.name}. Ctrl+Shift+Escape leaves it.`, spellcheck: "false", autocomplete: "off", autocapitalize: "off", autocorrect: "off" });
		this.probe = h("span.tprobe", { "aria-hidden": "true" }, "0".repeat(50));
		this.view = h("div.terminal", null, this.old, this.now, this.input, this.probe);
		this.element = h("div.shell.filling", null,
			h("div.bar", null, this.names.length > 1 && this.choice, this.state, this.again,
				h("span.dim.right", null, h("kbd", null, "Ctrl"), " ", h("kbd", null, "Shift"), " ", h("kbd", null, "Esc"), " leaves the terminal")),
			this.view);
		this.terminal = new Terminal(80, 24, {
			reply: (text) => this.send(text),
			changed: eachFrame(() => this.draw()),
			titled: (title) => (this.state.textContent = title),
		});
		this.drawn = [];
		this.kept = 0;
		this.#listen(scope);
		scope.add(() => this.close());
		this.sized = new ResizeObserver(() => this.fit());
		this.sized.observe(this.view);
		scope.add(() => this.sized.disconnect());
		requestAnimationFrame(() => {
			this.fit();
			this.connect();
			this.focus();
		});
	}

	focus() {
		this.input.focus({ preventScroll: true });
	}

	close() {
		this.stream?.close();
		this.stream = undefined;
	}

	connect() {
		this.close();
		const { namespace, name } = this.pod.metadata;
		const query = new URLSearchParams({ stdin: true, stdout: true, stderr: true, tty: true, container: this.choice.value || this.names[0]?.name });
		for (const word of ["sh", "-c", COMMAND]) query.append("command", word);
		const stream = socket(`${KIND.Pod.one(namespace, name, "exec")}?${query}`, ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
		stream.binaryType = "arraybuffer";
		this.stream = stream;
		this.state.textContent = "connecting";
		this.again.hidden = true;
		this.terminal.reset();
		const text = new TextDecoder();
		stream.onopen = () => {
			this.state.textContent = "";
			this.tellSize();
		};
		let ended = "the connection is closed";
		stream.onmessage = ({ data }) => {
			const message = new Uint8Array(data);
			const body = message.subarray(1);
			if (message[0] === STDOUT || message[0] === STDERR) this.terminal.write(text.decode(body, { stream: true }));
			else if (message[0] === RESULT) ended = this.#result(new TextDecoder().decode(body));
		};
		stream.onclose = () => {
			if (this.stream !== stream) return;
			this.stream = undefined;
			this.state.textContent = ended;
			this.again.hidden = false;
		};
		this.focus();
	}

	#result(text) {
		try {
			const status = JSON.parse(text);
			if (status.status === "Success") return "the shell has ended";
			const code = status.details?.causes?.find((cause) => cause.reason === "ExitCode")?.message;
			return code ? `the shell has ended with exit code ${code}` : status.message;
		} catch {
			return text;
		}
	}

	send(text) {
		if (this.stream?.readyState !== WebSocket.OPEN) return;
		const body = new TextEncoder().encode(text);
		const message = new Uint8Array(body.length + 1);
		message[0] = STDIN;
		message.set(body, 1);
		this.stream.send(message);
	}

	tellSize() {
		if (this.stream?.readyState !== WebSocket.OPEN) return;
		const size = JSON.stringify({ Width: this.terminal.columns, Height: this.terminal.rows });
		const message = new Uint8Array([RESIZE, ...new TextEncoder().encode(size)]);
		this.stream.send(message);
	}

	fit() {
		const box = this.probe.getBoundingClientRect();
		if (!box.width || !this.view.clientHeight) return;
		this.cell = { width: box.width / 50, height: box.height };
		const columns = Math.max(10, Math.floor((this.view.clientWidth - 18) / this.cell.width));
		const rows = Math.max(3, Math.floor((this.view.clientHeight - 12) / this.cell.height));
		if (columns === this.terminal.columns && rows === this.terminal.rows) return;
		this.terminal.resize(columns, rows);
		this.tellSize();
	}

	draw() {
		const { terminal } = this;
		const atEnd = this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < 40;
		// Lines that left the screen at its top; each is drawn once.
		const dropped = terminal.dropped ?? 0;
		const total = dropped + terminal.scrollback.length;
		while (this.old.childElementCount && this.first < dropped) {
			this.old.firstChild.remove();
			this.first += 1;
		}
		if (!this.old.childElementCount) this.first = Math.max(dropped, Math.min(this.kept, total));
		for (let index = Math.max(this.kept, dropped); index < total; index += 1) this.old.append(terminalLine(terminal.scrollback[index - dropped]));
		this.kept = total;
		this.old.hidden = terminal.alternate;
		for (let y = 0; y < terminal.rows; y += 1) {
			const line = terminal.screen[y];
			const cursor = terminal.modes.cursor && y === terminal.y ? terminal.x : -1;
			const mark = `${line.version},${cursor}`;
			if (this.drawn[y] === mark) continue;
			this.drawn[y] = mark;
			const element = terminalLine(line, cursor);
			if (this.now.children[y]) this.now.children[y].replaceWith(element);
			else this.now.append(element);
		}
		while (this.now.childElementCount > terminal.rows) this.now.lastChild.remove();
		this.drawn.length = terminal.rows;
		if (atEnd) this.view.scrollTop = this.view.scrollHeight;
		this.input.style.top = `${this.now.offsetTop + terminal.y * (this.cell?.height ?? 0)}px`;
	}

	#listen(scope) {
		const { input, view, terminal } = this;
		scope.on(input, "keydown", (event) => {
			if (event.isComposing) return;
			event.stopPropagation();
			if (event.key === "Escape" && event.ctrlKey && event.shiftKey) return leaveTerminal(event);
			// Copy, paste and the like stay the browser's.
			if (event.ctrlKey && event.shiftKey && /^[a-z]$/i.test(event.key)) {
				if (event.key.toUpperCase() === "C") {
					event.preventDefault();
					navigator.clipboard?.writeText(String(getSelection()));
				}
				return;
			}
			if (event.ctrlKey && !event.shiftKey && event.key === "v") return;
			const bytes = terminal.key(event);
			if (bytes === undefined) return;
			event.preventDefault();
			this.send(bytes);
			view.scrollTop = view.scrollHeight;
		});
		scope.on(input, "input", (event) => {
			if (event.isComposing) return;
			if (input.value) this.send(input.value);
			input.value = "";
		});
		scope.on(input, "compositionend", () => {
			this.send(input.value);
			input.value = "";
		});
		scope.on(input, "paste", (event) => {
			event.preventDefault();
			this.send(terminal.pasted(event.clipboardData.getData("text")));
		});
		scope.on(input, "focus", () => view.classList.add("focused"));
		scope.on(input, "blur", () => view.classList.remove("focused"));
		scope.on(view, "mouseup", (event) => {
			if (String(getSelection()) === "") this.focus();
			this.#mouse(event, 0, "m");
		});
		scope.on(view, "mousedown", (event) => this.#mouse(event, event.button, "M"));
		scope.on(view, "wheel", (event) => {
			if (terminal.modes.mouse) return this.#mouse(event, event.deltaY < 0 ? 64 : 65, "M");
			if (!terminal.alternate) return;
			// Programs that fill the screen have nothing above it: they scroll by keys.
			event.preventDefault();
			const key = terminal.key({ key: event.deltaY < 0 ? "ArrowUp" : "ArrowDown" });
			this.send(key.repeat(3));
		});
	}

	#mouse(event, code, final) {
		const { terminal } = this;
		if (!terminal.modes.mouse || event.shiftKey || !this.cell) return;
		event.preventDefault();
		const box = this.now.getBoundingClientRect();
		const x = Math.floor((event.clientX - box.left) / this.cell.width) + 1;
		const y = Math.floor((event.clientY - box.top) / this.cell.height) + 1;
		if (x < 1 || y < 1 || x > terminal.columns || y > terminal.rows) return;
		if (terminal.modes.sgrMouse) this.send(`\x1b[<${code};${x};${y}${final}`);
		else if (x < 223 && y < 223) this.send(`\x1b[M${String.fromCharCode(32 + (final === "m" ? 3 : code), 32 + x, 32 + y)}`);
	}
}

function leaveTerminal(event) {
	event.preventDefault();
	event.target.blur();
	list?.table?.element.focus({ preventScroll: true });
}

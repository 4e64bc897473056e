using System.Globalization;

namespace Gpu.Attention.Cli.Files;

/// <summary>
/// Reads the Python literal of an <c>.npy</c> header: a dictionary with exactly the keys <c>descr</c>, <c>fortran_order</c> and
/// <c>shape</c>, in any order and spacing, and nothing else of Python.
/// </summary>
internal ref struct NpyHeaderParser(ReadOnlySpan<char> text, string name)
{
    private readonly ReadOnlySpan<char> _text = text;
    private readonly string _name = name;
    private int _position;

    public (string Descriptor, bool FortranOrder, int[] Shape) Parse()
    {
        string? descriptor = null;
        bool? fortranOrder = null;
        int[]? shape = null;
        Expect('{');
        while (Peek() != '}')
        {
            string key = ParseString();
            Expect(':');
            bool isRepeated = key switch
            {
                "descr" => descriptor is not null,
                "fortran_order" => fortranOrder is not null,
                "shape" => shape is not null,
                _ => throw Error("holds another key than 'descr', 'fortran_order' and 'shape'"),
            };
            if (isRepeated)
            {
                throw Error($"holds '{key}' twice");
            }

            switch (key)
            {
                case "descr":
                    descriptor = ParseDescriptor();
                    break;
                case "fortran_order":
                    fortranOrder = ParseBoolean();
                    break;
                default:
                    shape = ParseShape();
                    break;
            }

            if (Peek() != '}')
            {
                Expect(',');
            }
        }

        Expect('}');
        return Peek() != '\0' || _position < _text.Length
            ? throw Error("goes on after its dictionary")
            : (descriptor ?? throw Error("lacks 'descr'"), fortranOrder ?? throw Error("lacks 'fortran_order'"), shape ?? throw Error("lacks 'shape'"));
    }

    private string ParseDescriptor() =>
        Peek() is '[' or '{' or '('
            ? throw Error("describes records; float32 ('<f4') and float64 ('<f8') are accepted")
            : ParseString();

    private bool ParseBoolean()
    {
        Peek();
        foreach ((string word, bool value) in new[] { ("True", true), ("False", false) })
        {
            if (_text[_position..].StartsWith(word, StringComparison.Ordinal))
            {
                _position += word.Length;
                return value;
            }
        }

        throw Error("has a 'fortran_order' that is neither True nor False");
    }

    private int[] ParseShape()
    {
        var sizes = new List<int>();
        Expect('(');
        while (Peek() != ')')
        {
            sizes.Add(ParseSize());

            // (3) is a number to Python; (3,) is the tuple.
            if (sizes.Count == 1 || Peek() != ')')
            {
                Expect(',');
            }
        }

        Expect(')');
        return [.. sizes];
    }

    private int ParseSize()
    {
        int start = _position;
        while (_position < _text.Length && char.IsAsciiDigit(_text[_position]))
        {
            _position++;
        }

        ReadOnlySpan<char> digits = _text[start.._position];
        if (digits.IsEmpty || (digits.Length > 1 && digits[0] == '0'))
        {
            throw Error("has a 'shape' with something else than sizes from 0 up");
        }

        if (!int.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out int size))
        {
            throw Error($"declares a dimension of more than {int.MaxValue} elements");
        }

        // Python 2 wrote long integers with a suffix.
        if (_position < _text.Length && _text[_position] == 'L')
        {
            _position++;
        }

        return size;
    }

    private string ParseString()
    {
        char quote = Peek();
        if (quote is not ('\'' or '"'))
        {
            throw Error("is not a Python dictionary of strings");
        }

        int start = _position + 1;
        int length = _text[start..].IndexOf(quote);
        if (length < 0)
        {
            throw Error("has a string without an end");
        }

        ReadOnlySpan<char> value = _text.Slice(start, length);
        if (value.ContainsAnyExceptInRange(' ', '~') || value.Contains('\\'))
        {
            throw Error("has a string with other than plain characters");
        }

        _position = start + length + 1;
        return value.ToString();
    }

    private void Expect(char expected)
    {
        if (Peek() != expected || _position >= _text.Length)
        {
            throw Error($"lacks a '{expected}' at character {_position}");
        }

        _position++;
    }

    private char Peek()
    {
        while (_position < _text.Length && (_text[_position] is ' ' or '\t' or '\n' or '\r'))
        {
            _position++;
        }

        return _position < _text.Length ? _text[_position] : '\0';
    }

    private readonly InvalidDataException Error(string what) => new($"{_name}: the .npy header {what}.");
}

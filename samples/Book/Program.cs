using System.CommandLine;
using Gpu.Attention.Samples.Book;

var exactSeconds = new Option<double>("--exact-seconds")
{
    Description = "About how long exact attention may take on the common prefix",
    DefaultValueFactory = _ => new BookOptions().ExactSeconds,
};
var prefix = new Option<int?>("--prefix") { Description = "Characters that all methods are compared on; overrides --exact-seconds" };
var length = new Option<int?>("--length") { Description = "Characters of the whole-book pass; all when left out" };
var features = new Option<string>("--features")
{
    Description = "Feature counts of FAVOR+, separated by commas",
    DefaultValueFactory = _ => string.Join(',', new BookOptions().Features),
};
var output = new Option<string>("--output") { Description = "The folder of the report", DefaultValueFactory = _ => new BookOptions().Output };
var quick = new Option<bool>("--quick") { Description = "A tenth of the book and a second of exact attention: to see that it runs" };
foreach (Option<int?> count in new[] { prefix, length })
{
    count.Validators.Add(result =>
    {
        if (result.GetValue(count) < 2)
        {
            result.AddError($"{count.Name} takes two characters or more.");
        }
    });
}

features.Validators.Add(result =>
{
    if (!(result.GetValue(features) ?? "").Split(',').All(m => int.TryParse(m, out int number) && number > 0))
    {
        result.AddError("--features takes whole numbers above zero, separated by commas, such as 256,1024.");
    }
});

var command = new RootCommand("Reads a book character by character through one causal attention layer, without any training.")
{
    exactSeconds, prefix, length, features, output, quick,
};
command.SetAction(arguments =>
{
    bool isQuick = arguments.GetValue(quick);
    var options = new BookOptions
    {
        ExactSeconds = isQuick ? 1 : arguments.GetValue(exactSeconds),
        Prefix = arguments.GetValue(prefix),
        Length = arguments.GetValue(length) ?? (isQuick ? 120_000 : null),
        LongestCall = isQuick ? 16_384 : new BookOptions().LongestCall,
        Features = [.. arguments.GetValue(features)!.Split(',').Select(int.Parse)],
        Output = arguments.GetValue(output)!,
    };
    Corpus book = Corpus.Load(Path.Combine(AppContext.BaseDirectory, "moby-dick.txt"));
    new BookRun(options, book, Console.Out, isTerminal: !Console.IsOutputRedirected).Run();
});
return command.Parse(args).Invoke();
